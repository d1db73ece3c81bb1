"""Who is asking: tokens, teams, sessions."""
