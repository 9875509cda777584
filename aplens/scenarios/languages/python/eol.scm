; Python has no mark that ends a statement but the end of its line, so the span is that line break.
[
  (assert_statement)
  (break_statement)
  (continue_statement)
  (delete_statement)
  (expression_statement)
  (future_import_statement)
  (global_statement)
  (import_from_statement)
  (import_statement)
  (nonlocal_statement)
  (pass_statement)
  (raise_statement)
  (return_statement)
  (type_alias_statement)
] @line_end
