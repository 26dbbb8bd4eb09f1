"""Programs side by side on the same references: win rates, costs, and what filters make of it."""
