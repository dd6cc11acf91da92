"""Vocabularies: a tokenizer's file in, the ids and bytes of its tokens and an encoder of plain text out.

`files` finds the file of a folder. `byte_level` reads byte-level BPE, Llama 3's, GPT-2's and Qwen's, whose texts
`patterns` cut and which tiktoken encodes, once `bpe` has found that it merges as the file says. `sentence_pieces` reads
those of Llama 1 and 2 and of Mistral, which the libraries encode that they were written by. `contents` is what all
of them become. A new kind of vocabulary is a file here; what would not give exactly the ids of the original is refused
by name.

Special tokens are not looked for here: `tokenizer` cuts them out of a text first.
"""
