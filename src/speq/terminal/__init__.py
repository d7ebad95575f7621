"""What a terminal gets: text while it appears, a status line, progress bars."""
