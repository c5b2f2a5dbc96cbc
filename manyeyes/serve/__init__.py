"""Talking to a trained model: ``assistant`` answers, ``chat`` holds a conversation.

``pyfunc_model`` is the file MLflow keeps with a registered version and runs to load it.
"""
