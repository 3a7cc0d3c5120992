"""What is done with the folders of saved adapters, without the weights of the model that they are for.

`saved` reads and writes a folder, `info` describes it, `export` writes it as plain LoRA by the matrices of
`pairs`, `fit` makes one from a LoRA, `combine` adds several up. `base_model` finds the class and the structure of the
model that an adapter is for.
"""
