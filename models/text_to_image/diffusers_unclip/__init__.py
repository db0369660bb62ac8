"""unCLIP of others, as diffusers has it: a prior of CLIP's embeddings of pictures, and a decoder of them."""
