-- ExtractChangedRecordState, and a header dropped.
-- @config transforms=ch,hv
-- @config transforms.ch.type=io.debezium.transforms.ExtractChangedRecordState
-- @config transforms.ch.header.changed.name=Changed
-- @config transforms.ch.header.unchanged.name=Same
-- @config transforms.hv.type=org.apache.kafka.connect.transforms.DropHeaders
-- @config transforms.hv.headers=Same
-- @setup
CREATE TABLE public.k (a int, b text, c numeric(6,2), v text, PRIMARY KEY (b, a));
CREATE TABLE public.kf (id int PRIMARY KEY, code text, v text); ALTER TABLE public.kf REPLICA IDENTITY FULL;
CREATE TABLE public.ku (a int NOT NULL, b text, v text); CREATE UNIQUE INDEX ku_a ON public.ku (a); ALTER TABLE public.ku REPLICA IDENTITY USING INDEX ku_a;
CREATE TABLE public.kn (v text); ALTER TABLE public.kn REPLICA IDENTITY FULL;
INSERT INTO public.k VALUES (1, 'x', 1.5, 'v'), (2, 'y', NULL, NULL);
INSERT INTO public.kf VALUES (1, 'c1', 'v'), (2, NULL, NULL);
INSERT INTO public.ku VALUES (1, 'b', 'v'), (2, NULL, NULL);
INSERT INTO public.kn VALUES ('v'), (NULL);
-- @stream
UPDATE public.k SET b = 'x2' WHERE a = 1;
UPDATE public.k SET v = 'w' WHERE a = 1;
UPDATE public.kf SET id = 10 WHERE id = 1;
UPDATE public.kf SET code = 'c2' WHERE id = 10;
UPDATE public.kf SET v = NULL WHERE id = 10;
UPDATE public.ku SET a = 10 WHERE a = 1;
UPDATE public.ku SET v = 'w' WHERE a = 10;
UPDATE public.kn SET v = 'w' WHERE v = 'v';
DELETE FROM public.k WHERE a = 1;
DELETE FROM public.kf;
DELETE FROM public.ku;
DELETE FROM public.kn;
INSERT INTO public.k VALUES (3, 'z', 0, '');
TRUNCATE public.k, public.kf;
