"""Checkpoints: files in, a `Model` out, and texts to token ids and back.

`hf_folder` is the one layout that is read, a plain Hugging Face folder: `tensors` its arrays, `load_weights` how they
reach the devices, `tokenizer` and `vocabulary/` its texts as ids, `chat` its template, `loading` all of it together.
`convert/` makes such a folder of other formats, `download` fetches one. A new weight format belongs here.

Nothing here runs a model or knows a sampler.
"""
