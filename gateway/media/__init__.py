"""Images that belong to requests: taken out of data: URLs or fetched, checked, and held while their jobs need them.

The only part of the gateway that connects to anything outside the pool. Nothing in here opens a file.
"""
