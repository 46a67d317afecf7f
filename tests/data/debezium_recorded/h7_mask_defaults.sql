-- Masks, hashes and cuts of columns with defaults.
-- @config column.mask.with.0.chars=public.q.a
-- @config column.mask.hash.MD5.with.salt.s=public.q.b
-- @config column.mask.hash.v2.SHA-512.with.salt.s=public.q.(c|id)
-- @config column.truncate.to.4.chars=public.q.(d|e|v5)
-- @config column.mask.with.12.chars=public.q.(f|n)
-- @setup
CREATE TABLE public.q (id varchar(40) PRIMARY KEY, a text NOT NULL DEFAULT 'aa', b varchar(20) NOT NULL, c char(10), d text DEFAULT 'longer than four', e varchar(10) NOT NULL DEFAULT 'also long', f text, n int NOT NULL DEFAULT 3, v5 varchar(3) DEFAULT 'abc');
INSERT INTO public.q VALUES ('k', 'x', '', 'c', NULL, 'é😀é😀', NULL, 1, NULL);
-- @stream
INSERT INTO public.q (id, b) VALUES ('k2', 'bé');
UPDATE public.q SET id = 'k3' WHERE id = 'k2';
DELETE FROM public.q WHERE id = 'k';
