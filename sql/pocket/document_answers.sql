-- What the rephraser makes of documents as they are.
SELECT id, text, rephrase(text) AS answer
FROM documents
