"""What a network card is plugged into."""
