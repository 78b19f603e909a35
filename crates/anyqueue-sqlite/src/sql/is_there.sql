SELECT count(*) FROM numbering
