"""The processes that compile grammars and compute masks: bounded, in turns, killed without loss."""
