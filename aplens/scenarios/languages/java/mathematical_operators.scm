; Asked for by their parents: < and > also enclose type arguments.
(binary_expression operator: ["+" "-" "*" "/" "%" "<" ">" "<=" ">="] @span)

(unary_expression operator: ["+" "-"] @span)

(update_expression ["++" "--"] @span)
