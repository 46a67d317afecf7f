-- @setup
CREATE TABLE public.tf (id int PRIMARY KEY, big text, b bytea, j jsonb, small text);
ALTER TABLE public.tf ALTER big SET STORAGE EXTERNAL; ALTER TABLE public.tf ALTER b SET STORAGE EXTERNAL; ALTER TABLE public.tf ALTER j SET STORAGE EXTERNAL;
ALTER TABLE public.tf REPLICA IDENTITY FULL;
INSERT INTO public.tf VALUES (1, repeat('x',3000), decode(repeat('ab',3000),'hex'), ('{"k":"'||repeat('z',3000)||'"}')::jsonb, 's');
-- @stream
UPDATE public.tf SET small='t' WHERE id=1;
UPDATE public.tf SET id=2 WHERE id=1;
UPDATE public.tf SET big=NULL WHERE id=2;
DELETE FROM public.tf;
