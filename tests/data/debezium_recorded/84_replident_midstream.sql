-- @setup
CREATE TABLE public.ri (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text);
INSERT INTO public.ri VALUES (1,10,'a'),(2,20,'b'),(3,30,'c'),(4,40,'d');
-- @stream
UPDATE public.ri SET v='x' WHERE id=1;
-- @sync
ALTER TABLE public.ri REPLICA IDENTITY FULL;
UPDATE public.ri SET v='y' WHERE id=1;
DELETE FROM public.ri WHERE id=1;
-- @sync
ALTER TABLE public.ri REPLICA IDENTITY USING INDEX ri_u_key;
UPDATE public.ri SET v='y' WHERE id=2;
UPDATE public.ri SET u=21 WHERE id=2;
UPDATE public.ri SET id=22 WHERE id=2;
DELETE FROM public.ri WHERE id=22;
-- @sync
ALTER TABLE public.ri REPLICA IDENTITY NOTHING;
INSERT INTO public.ri VALUES (5,50,'e');
-- @sync
ALTER TABLE public.ri REPLICA IDENTITY DEFAULT;
DELETE FROM public.ri WHERE id=3;
-- @sync
