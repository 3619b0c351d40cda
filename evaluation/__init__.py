"""Generate the answers of a model, measure them, and chat with the model in a terminal."""
