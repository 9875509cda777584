(method_invocation name: (identifier) @span)
