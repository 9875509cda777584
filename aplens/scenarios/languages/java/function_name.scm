(method_declaration name: (identifier) @span)
