"." @span
