(boolean_operator operator: ["and" "or"] @span)

(not_operator "not" @span)

(comparison_operator operators: ["==" "!="] @span)
