(call function: (identifier) @span)

(call function: (attribute attribute: (identifier) @span))
