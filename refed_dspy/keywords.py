"""Which settings each public function takes, by its keywords: for type checkers and editors, in `keywords.pyi`."""
