(identifier) @span
