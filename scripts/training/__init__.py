"""The demo chat model, from generated text to weights and figures. Downloads nothing."""
