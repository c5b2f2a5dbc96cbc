"""What a launch will need, worked out from the recipe before anything is launched.

The parts, in the order in which they are used: ``stages`` (which models train, built without
memory), ``gpus`` (the table of devices), ``lengths`` (how long samples are), ``activations`` (what
a forward pass keeps), ``few_bits`` (what bitsandbytes holds), ``memory`` (what a GPU must hold),
``estimate`` (all of it for a recipe) and ``fitting`` (the nearest thing that fits).
"""
