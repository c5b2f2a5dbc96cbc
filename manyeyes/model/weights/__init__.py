"""Weights from elsewhere: where a reference leads, what is in the files, and what is refused.

``loading`` reads and writes safetensors; ``hub``, ``packages`` and ``zoo`` are places;
``published`` has the shapes of known language models; ``conversion``, ``onnx_file`` and
``quantised`` read other formats; ``soundness`` and ``foreign_code`` refuse; ``exchange`` carries
checkpoints between the authors' key names and ours. Nothing is imported here.
"""
