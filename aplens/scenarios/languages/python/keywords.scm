; True, False and None are literals here; and, or and not are boolean_operators.
[
  "as" "assert" "async" "await" "break" "case" "class" "continue" "def" "del" "elif" "else"
  "except" "finally" "for" "from" "global" "if" "import" "in" "is" "lambda" "match" "nonlocal"
  "pass" "raise" "return" "try" "type" "while" "with" "yield"
] @span
