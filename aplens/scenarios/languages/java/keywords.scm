; Reserved words, and the contextual ones where the grammar reads them as keywords. The literals
; true, false and null are none.
[
  "abstract" "assert" "break" "byte" "case" "catch" "char" "class" "continue" "default" "do"
  "double" "else" "enum" "extends" "final" "finally" "float" "for" "if" "implements" "import"
  "instanceof" "int" "interface" "long" "native" "new" "non-sealed" "package" "permits" "private"
  "protected" "public" "record" "return" "sealed" "short" "static" "strictfp" "switch"
  "synchronized" "throw" "throws" "transient" "try" "volatile" "when" "while" "yield"
] @span

[(boolean_type) (super) (this) (void_type)] @span
