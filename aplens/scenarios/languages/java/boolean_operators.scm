(binary_expression operator: ["==" "!=" "&&" "||"] @span)

(unary_expression operator: "!" @span)
