"""The request desk: requests of erasure from receipt to answer, with a signed ledger that anyone can verify offline.

DESK/
  ledger.jsonl             what was done, one signed entry a line; each contains the hash of the entry before. Nothing personal
  receipts/R-000007.json   what was done for one request, signed. Nothing personal
  letters/R-000007.md      the answer to the person, as it was recorded. Nothing personal
  kept/<secret>.*          the photo and the name of a request, encrypted with a secret of the request, until `erase` destroys the secret

The secrets, and the key that signs, are in the vault (`oneshui_hf.vault`), not in this folder. This package knows no model.
"""
