[(string_literal) (character_literal)] @span
