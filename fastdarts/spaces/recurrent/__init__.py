"""The recurrent cell of DARTS: a language model whose cell is searched."""
