"""The replaceable parts: dynamics, decoder, likelihood, prior, encoder, posterior."""
