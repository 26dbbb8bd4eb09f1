"""Programs side by side on the same references: win rates, costs, and what filters keep of their rows."""
