-- What the tokenizer learns from: the examples without the marks around what is given.
SELECT replace(replace(completion, chr(57584), ''), chr(57585), '') AS text FROM pairs
