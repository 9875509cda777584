(binary_operator operator: ["+" "-" "*" "/" "//" "%" "**" "@"] @span)

(unary_operator operator: ["+" "-"] @span)

(comparison_operator operators: ["<" ">" "<=" ">="] @span)
