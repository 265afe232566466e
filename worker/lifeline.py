"""The words on the lifeline, the pipe between a supervisor and its engine process."""

IS_READY, IS_HEALTHY, IS_SPARE = b"r", b"p", b"s"
"""What an engine says on its lifeline: that it takes jobs; that it has done work since; that it waits to be needed."""
GO = b"g"
"""The one word that it is told there: a spare is to be an engine from now on."""
