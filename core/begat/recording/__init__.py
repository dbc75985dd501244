"""What a training's callbacks need: inputs observed, checkpoints staged and shipped, predictions streamed.

recorder      what every callback calls
ending        its end, on every way out; `leaving` knows of a training that ended without a hook
observing     what the training data really is, by `matching` it with what begat handed out
staging       a checkpoint taken in inside the save hook
journal       what is staged and sealed, on disk
shipping      from the journal into the store, while the training goes on
predictions   parquet, streamed; `sealing` makes a version of it
policy        `on_error`: what is raised, and what is warned of once (`troubles`)
"""
