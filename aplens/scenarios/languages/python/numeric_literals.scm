[(integer) (float)] @span
