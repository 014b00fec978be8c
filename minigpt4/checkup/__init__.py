"""What a user asks before a run: will it fit, and how long will it take (plan/)."""
