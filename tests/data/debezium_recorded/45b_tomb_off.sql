-- @config tombstones.on.delete=false
-- Primary key UPDATE = delete(old key) + tombstone + create(new key), with headers.
-- @setup
CREATE TABLE public.pk (id int PRIMARY KEY, v text);
CREATE TABLE public.pkc (a int, b text, v text, PRIMARY KEY (a, b));
CREATE TABLE public.pkfull (id int PRIMARY KEY, v text);
ALTER TABLE public.pkfull REPLICA IDENTITY FULL;
INSERT INTO public.pk VALUES (1, 'a'), (2, 'b');
INSERT INTO public.pkc VALUES (1, 'x', 'v');
INSERT INTO public.pkfull VALUES (1, 'a');
-- @stream
UPDATE public.pk SET id = 10 WHERE id = 1;
UPDATE public.pk SET id = 20, v = 'b2' WHERE id = 2;
UPDATE public.pk SET id = id WHERE id = 20;
UPDATE public.pkc SET b = 'y' WHERE a = 1;
UPDATE public.pkfull SET id = 5 WHERE id = 1;
UPDATE public.pkfull SET id = 6, v = 'z' WHERE id = 5;
BEGIN;
UPDATE public.pk SET id = 11 WHERE id = 10;
UPDATE public.pk SET id = 10 WHERE id = 11;
COMMIT;
