"""What the seed systems' trainer does, written anew from its behaviour, to be measured against.

Nothing here is used by the product. The towers, fusion, projector and language model are the
product's own; only how they are trained differs: ``method`` says in what.
"""
