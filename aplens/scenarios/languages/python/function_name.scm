(function_definition name: (identifier) @span)
