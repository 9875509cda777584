(string) @span

; A docstring is documentation: any string that is a statement of its own.
(expression_statement . (string) @skip .)
