-- A partitioned table by its root.
-- @config publish.via.partition.root=true
-- @config publication.autocreate.mode=filtered
-- @config table.include.list=public.pt
-- @setup
CREATE TABLE public.pt (id int, region text, v numeric, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE public.pt_eu PARTITION OF public.pt FOR VALUES IN ('eu'); CREATE TABLE public.pt_us PARTITION OF public.pt FOR VALUES IN ('us'); CREATE TABLE public.pt_d PARTITION OF public.pt DEFAULT;
INSERT INTO public.pt VALUES (1, 'eu', 1.5), (2, 'us', NULL), (3, 'xx', 0);
-- @stream
UPDATE public.pt SET v = 2 WHERE id = 1;
UPDATE public.pt SET region = 'us' WHERE id = 1;
DELETE FROM public.pt WHERE id = 2;
INSERT INTO public.pt VALUES (4, 'eu', 'NaN');
