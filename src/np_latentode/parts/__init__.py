"""What a user takes out and replaces: dynamics, decoder, likelihood, prior, encoder, posterior."""
