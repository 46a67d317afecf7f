-- Bytes; bytes.
-- @config binary.handling.mode=bytes
-- @setup
CREATE DOMAIN public.dby AS bytea;
CREATE TABLE public.bin (id int PRIMARY KEY, b bytea, d public.dby, a bytea[], df bytea DEFAULT '\x0102', nn bytea NOT NULL, nd bytea NOT NULL DEFAULT 'abc');
INSERT INTO public.bin VALUES
 (1, '', '', '{}', '', '', ''),
 (2, '\x00ff', '\xfbff', '{"\\x00ff",NULL,""}', '\xdeadbeef', '\x5c', '\x27'),
 (3, NULL, NULL, NULL, NULL, 'plain', 'é'),
 (4, decode(repeat('fb', 100), 'hex'), 'x', '{{"\\xfbfb"},{NULL}}', DEFAULT, decode(repeat('00', 3), 'hex'), DEFAULT);
-- @stream
INSERT INTO public.bin SELECT id + 100, b, d, a, df, nn, nd FROM public.bin ORDER BY id;
UPDATE public.bin SET id = 200 WHERE id = 102;
DELETE FROM public.bin WHERE id = 103;
