[(true) (false)] @span
