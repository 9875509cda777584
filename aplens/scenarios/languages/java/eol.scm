";" @span.line_end
