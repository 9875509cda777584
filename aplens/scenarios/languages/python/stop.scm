(attribute "." @span)

(dotted_name "." @span)
