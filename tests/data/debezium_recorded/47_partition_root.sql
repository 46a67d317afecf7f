-- @config publish.via.partition.root=true
-- Declarative partitioning (default: events name the leaf partition).
-- (no extra config)
-- @setup
CREATE TABLE public.ev (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE public.ev_2024 PARTITION OF public.ev FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE public.ev_2025 PARTITION OF public.ev FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO public.ev VALUES (1, '2024-05-05', 'a'), (2, '2025-05-05', 'b');
-- @stream
INSERT INTO public.ev VALUES (3, '2024-06-06', 'c');
UPDATE public.ev SET v = 'c2' WHERE id = 3;
UPDATE public.ev SET d = '2025-07-07' WHERE id = 3;   -- row moves to another partition
DELETE FROM public.ev WHERE id = 1;
CREATE TABLE public.ev_2026 PARTITION OF public.ev FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO public.ev VALUES (4, '2026-01-01', 'new partition');
